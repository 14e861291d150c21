"use strict";
const about = JSON.parse(document.querySelector("#delivery").textContent);
const [video, menu, state] = ["video", "select", "#state"].map((of) => document.querySelector(of));
const AHEAD_S = 20, POLL_MS = 200;
const pause = () => new Promise((done) => setTimeout(done, POLL_MS));
const say = (text) => { state.textContent = text; };
const kind = (item) => `${item.kind}/mp4; codecs="${item.codecs}"`;

// a media playlist: the head of the file and the segments, each a file or a part of one
const parsed = (text, folder) => {
  const list = { head: null, parts: [], end: 0 };
  let seconds = 0, span = null;
  for (const row of text.split("\n")) {
    if (row.startsWith("#EXT-X-MAP:")) {
      const range = /BYTERANGE="(\d+)@(\d+)"/.exec(row);
      list.head = { url: `${folder}/${/URI="([^"]+)"/.exec(row)[1]}`, span: range && range.slice(1).map(Number) };
    } else if (row.startsWith("#EXTINF:")) {
      seconds = parseFloat(row.slice(8));
    } else if (row.startsWith("#EXT-X-BYTERANGE:")) {
      span = row.slice(17).split("@").map(Number);
    } else if (row && !row.startsWith("#")) {
      list.parts.push({ url: `${folder}/${row}`, span, start: list.end });
      [list.end, span] = [list.end + seconds, null];
    }
  }
  return list;
};
const got = async (url, options) => {
  const answer = await fetch(url, options);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return answer;
};
const bytes = async ({ url, span }) => {
  if (!span) return (await got(url)).arrayBuffer();
  const [size, start] = span;
  const answer = await got(url, { headers: { Range: `bytes=${start}-${start + size - 1}` } });
  const data = await answer.arrayBuffer();
  // a server that knows no ranges sends the whole
  return answer.status === 200 ? data.slice(start, start + size) : data;
};
const lists = new Map();
const listOf = (item) => {
  if (!lists.has(item)) {
    lists.set(item, got(`${item.id}/media.m3u8`).then((a) => a.text()).then((text) => parsed(text, item.id)));
  }
  return lists.get(item);
};

// one source buffer, fed in the order of the playlist, from where the video is looked at
class Track {
  constructor(buffer, item) {
    Object.assign(this, { buffer, item, next: 0, over: false, last: null, anew: false });
  }
  idle() {
    return new Promise((done) => {
      if (!this.buffer.updating) done();
      else this.buffer.addEventListener("updateend", done, { once: true });
    });
  }
  async put(data) {
    for (;;) {
      await this.idle();
      try {
        this.buffer.appendBuffer(data);
        return this.idle();
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        if (video.currentTime > 10) this.buffer.remove(0, video.currentTime - 5);
        await pause();
      }
    }
  }
  holds(time) {
    const spans = this.buffer.buffered;
    return [...Array(spans.length).keys()].some((i) => spans.start(i) <= time + 0.1 && time < spans.end(i));
  }
  async seek() {
    const { parts } = await listOf(this.item);
    this.next = Math.max(0, parts.findLastIndex((part) => part.start <= video.currentTime + 0.1));
    this.over = false;
  }
  async choose(item) {
    this.item = item;
    await this.seek();
    this.anew = true;
  }
  async run(ended) {
    for (;;) {
      const item = this.item, list = await listOf(item), part = list.parts[this.next];
      if (!part) {
        this.over = true;
        ended();
        await pause();
        continue;
      }
      if (part.start - video.currentTime > AHEAD_S) {
        await pause();
        continue;
      }
      this.next += 1;
      if (item !== this.last) {
        await this.idle();
        this.buffer.changeType(kind(item));
        await this.put(await bytes(list.head));
        this.last = item;
      }
      const anew = this.anew;
      await this.put(await bytes(part));
      // what was decoded already is dropped, or it would be shown up to the next key frame
      if (anew && item === this.item) {
        this.anew = false;
        video.currentTime = video.currentTime;
      }
    }
  }
}

const play = async () => {
  if (location.protocol === "file:") {
    throw new Error("a browser reads segments from a server alone: run python3 -m http.server in this folder, " +
      "and open http://localhost:8000/play.html");
  }
  const known = about.rungs.filter((item) => window.MediaSource && MediaSource.isTypeSupported(kind(item)));
  if (!known.length) throw new Error(`this browser plays none of ${about.rungs.map((r) => r.codecs).join(", ")}`);
  known.forEach((item, at) => menu.add(new Option(item.words, at)));
  menu.value = known.length - 1;
  const source = new MediaSource();
  video.src = URL.createObjectURL(source);
  await new Promise((done) => source.addEventListener("sourceopen", done, { once: true }));
  const first = known[known.length - 1];
  const tracks = [new Track(source.addSourceBuffer(kind(first)), first)];
  if (about.audio && MediaSource.isTypeSupported(kind(about.audio))) {
    tracks.push(new Track(source.addSourceBuffer(kind(about.audio)), about.audio));
  }
  source.duration = (await listOf(first)).end;
  const ended = () => {
    const still = tracks.every((track) => track.over && !track.buffer.updating);
    if (still && source.readyState === "open") source.endOfStream();
  };
  menu.addEventListener("change", () => tracks[0].choose(known[menu.value]));
  video.addEventListener("seeking", () => tracks.forEach((t) => t.holds(video.currentTime) || t.seek()));
  video.addEventListener("resize", () => say(`shown: ${video.videoWidth}x${video.videoHeight}`));
  await Promise.all(tracks.map((track) => track.run(ended)));
};
play().catch((error) => say(`Not played: ${error.message}.`));

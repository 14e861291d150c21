"use strict";
// the live part of the page is fetched again; what is chosen in it stays
const refresh = async () => {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const [now, next] = [document.querySelector("#live"), page.querySelector("#live")];
  if (!now || !next || now.innerHTML === next.innerHTML) return;
  const chosen = [...now.querySelectorAll("input:checked")].map((box) => [box.name, box.value]);
  now.replaceWith(next);
  for (const [name, value] of chosen) {
    const box = next.querySelector(`input[name="${name}"][value="${CSS.escape(value)}"]`);
    if (box) box.checked = true;
  }
};
const follow = document.querySelector("#now");
if (follow) {
  const source = new EventSource(`/api/v1/jobs/${follow.dataset.job}/events`);
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    const line = document.querySelector("#now");
    if (line && event.event === "progress") {
      const count = event.total ? ` ${event.done}/${event.total}` : "";
      line.textContent = `${event.stage}${count} ${event.message}`;
    }
  };
  source.addEventListener("state", (message) => {
    const job = JSON.parse(message.data);
    if (job.ended) source.close();
    refresh();
  });
} else {
  setInterval(refresh, 2000);
}
document.addEventListener("click", async (event) => {
  const id = event.target.dataset.cancel;
  if (!id) return;
  event.preventDefault();
  event.target.disabled = true;
  await fetch(`/api/v1/jobs/${id}`, { method: "DELETE" });
  await refresh();
});
const form = document.querySelector("#submit");
if (form) {
  const say = form.querySelector("output");
  const file = form.elements.file;
  file.addEventListener("change", () => { form.elements.input.required = !file.files.length; });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      let input = form.elements.input.value;
      if (file.files.length) {
        say.textContent = "uploading";
        const name = encodeURIComponent(file.files[0].name);
        input = (await ask("PUT", `/api/v1/uploads/${name}`, file.files[0])).input;
      }
      const options = {};
      for (const pair of form.elements.options.value.split(/\s+/).filter(Boolean)) {
        const [name, ...value] = pair.split("=");
        options[name] = value.length ? value.join("=") : true;
      }
      const job = { input, codec: form.elements.codec.value, options };
      if (form.elements.profile.value) job.profile = form.elements.profile.value;
      await ask("POST", "/api/v1/jobs", JSON.stringify(job), "application/json");
      say.textContent = "submitted";
      form.reset();
      await refresh();
    } catch (error) {
      say.textContent = error.message;
    }
  });
}
async function ask(method, path, body, kind) {
  const headers = kind ? { "Content-Type": kind } : {};
  const answer = await fetch(path, { method, body, headers });
  const document = await answer.json();
  if (!answer.ok) throw new Error(document.error);
  return document;
}

"""Container formats that files are opened as, by ffmpeg's names: of sources, of our encodes."""

SOURCES = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,yuv4mpegpipe"
"""The formats in which a title may come; none of them opens other files."""

SOURCES_AND_SOUND = f"{SOURCES},mp3,wav,flac,ogg,aac,aiff"
"""With those of sound alone, which are opened to say that they hold no video."""

ENCODES = f"{SOURCES},ivf,obu,h264,hevc,vvc,avs2,mpegts,avi,nut"
"""The formats in which a rung may come; none of them opens other files."""

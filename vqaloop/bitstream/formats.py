"""Container formats that files are opened as: of sources, and of our own encodes."""

SOURCES = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,yuv4mpegpipe"
"""ffmpeg's names of the formats in which a title may come."""

ENCODES = f"{SOURCES},ivf,obu,h264,hevc,vvc,avs2,mpegts,avi,nut"
"""ffmpeg's names of the formats in which a rung may come; none of them opens other files."""

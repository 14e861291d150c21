"""Encoders as data (encoders/*.toml), ffmpeg's options, what runs here, one encode."""

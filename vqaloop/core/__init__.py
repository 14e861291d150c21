"""Programs, files, folders, text and checked documents; nothing here knows of video."""

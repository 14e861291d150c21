"""How results are shown: HTML, Markdown, console tables, progress, plot style."""

"""`vqaloop ladder` and `report`: the loop, ladder.json, plots, pages, two ladders compared."""

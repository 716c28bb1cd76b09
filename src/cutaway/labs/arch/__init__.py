"""Models as a whole: their parts, sizes, families and what came before them."""

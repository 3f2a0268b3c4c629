"""What ``minquant demo`` runs: the article's three regressions, and the same three flows on handwritten digits."""

"""The page of runs: an HTML file to look at their films, to compare them and to choose among them."""

"""Training, shared by the families: data, the loop, and the files that it writes."""

"""Code that two or more families use."""

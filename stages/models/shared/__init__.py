"""What two families or more use."""

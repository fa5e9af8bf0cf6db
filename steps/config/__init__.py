"""Every configuration key, its type and its bounds; where the project's files are."""

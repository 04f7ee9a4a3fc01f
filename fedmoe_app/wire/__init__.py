"""Client updates and global states as Flower records, and their validation."""

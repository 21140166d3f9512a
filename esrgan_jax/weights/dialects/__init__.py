"""What names a network has in files, an architecture each."""

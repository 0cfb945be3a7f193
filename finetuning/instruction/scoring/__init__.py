"""What answers are measured by, by machine and by people."""

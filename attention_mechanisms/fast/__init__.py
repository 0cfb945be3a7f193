"""What only makes attention fast; the modules one door up work without knowing how."""

"""What every chapter shares and none owns: files, figures, the command line, the machine."""

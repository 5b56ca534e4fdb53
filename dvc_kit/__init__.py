"""What every house needs: errors in one line, whole files, other programs, strict settings."""

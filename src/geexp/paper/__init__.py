"""What the paper trained and printed."""

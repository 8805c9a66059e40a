"""What a guest of the dev cluster is: a protocol, and what runs behind it."""

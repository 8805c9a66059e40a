"""What CDI's controllers and validators do."""

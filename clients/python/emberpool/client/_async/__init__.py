"""The client for asyncio, of which the other one is made (`scripts/client`)."""

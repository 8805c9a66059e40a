"""The channel of guests: `/guest/v1`, apart from the API, with the tokens of VMs."""

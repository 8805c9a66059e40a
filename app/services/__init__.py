"""What a request does. Services open transactions; api/ calls them."""

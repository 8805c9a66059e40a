"""What the client commands have in common: where the service is, and the token for it."""

import pytest
import typer

from app.cli.client.options import connect


@pytest.mark.parametrize(
    ("token", "sent"), [("t0ken", "Bearer t0ken"), (" t0ken\n", "Bearer t0ken"), ("\n", None), ("", None), (None, None)]
)
def test_white_space_around_a_token_is_no_part_of_it(token, sent):
    with connect("http://127.0.0.1", token) as service:
        found = service.http.auth._source.read()
        assert (f"Bearer {found}" if found else None) == sent


@pytest.mark.parametrize("token", ["to\nken", "schlüssel"])
def test_a_token_that_no_header_carries_is_refused(token):
    with pytest.raises(typer.BadParameter, match="one line of printable ASCII"):
        connect("http://127.0.0.1", token)

"""Settings: where those that hold secrets may come from, which values are none, and lists."""

import pytest
from pydantic import ValidationError

from app.config import Settings


@pytest.mark.parametrize("token", ["", "  ", "\n"])
def test_an_empty_token_is_refused_and_not_taken_for_none(monkeypatch, token):
    monkeypatch.setenv("EMBERPOOL_API_TOKEN", token)
    with pytest.raises(ValidationError, match="unset it if everybody who reaches the service may use it"):
        Settings()


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "schl\u00fcssel", "nul\0"])
def test_a_token_that_no_header_carries_is_refused(token):
    with pytest.raises(ValidationError, match="which no header can carry"):
        Settings(api_token=token)


def test_white_space_around_a_token_is_no_part_of_it():
    assert Settings(api_token=" t0ken\n").api_token.get_secret_value() == "t0ken"
    assert Settings().api_token is None


def test_secrets_are_read_from_files(monkeypatch, tmp_path):
    for name, text in (("database_url", "postgresql://me:s3cr3t@h/d\n"), ("api_token", "t0ken\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.setenv(f"EMBERPOOL_{name.upper()}_FILE", str(tmp_path / name))
    settings = Settings()
    assert settings.database_url.get_secret_value() == "postgresql://me:s3cr3t@h/d"
    assert settings.api_token.get_secret_value() == "t0ken"
    assert "s3cr3t" not in repr(settings)


def test_a_secret_from_two_places_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBERPOOL_API_TOKEN", "one")
    with pytest.raises(ValidationError, match="api_token and api_token_file are both set"):
        Settings(api_token_file=tmp_path / "token")


def test_a_file_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBERPOOL_API_TOKEN_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(ValidationError, match=r"api_token_file names .*nowhere, which cannot be read: No such file"):
        Settings()


def test_an_empty_file_is_an_empty_token(tmp_path):
    (tmp_path / "token").write_text("\n", encoding="utf-8")
    with pytest.raises(ValidationError, match="is empty"):
        Settings(api_token_file=tmp_path / "token")


def test_allowed_hosts_are_separated_by_commas(monkeypatch):
    assert Settings().allowed_hosts == ()
    monkeypatch.setenv("EMBERPOOL_ALLOWED_HOSTS", "Pool.example.com, *.svc,")
    assert Settings().allowed_hosts == ("pool.example.com", "*.svc")

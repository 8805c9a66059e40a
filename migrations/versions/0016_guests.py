"""Guests that have a channel to the service, and what claims hand over to them."""

from alembic import op

revision = "0016"
down_revision = "0015"

_UP = """
CREATE TABLE guest (
    vm_id UUID NOT NULL,
    token_hash BYTEA NOT NULL,
    identity_uid TEXT,
    identity_gone BOOLEAN DEFAULT false NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    boot_id TEXT,
    former_boots TEXT[] DEFAULT '{}' NOT NULL,
    hello_at TIMESTAMP WITH TIME ZONE,
    claim_id UUID,
    settled_id UUID,
    release_seconds INTEGER DEFAULT 0 NOT NULL,
    conflict TEXT,
    refused_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT guest_pkey PRIMARY KEY (vm_id)
);
CREATE UNIQUE INDEX guest_token_hash_key ON guest (token_hash);
CREATE INDEX guest_identity_idx ON guest (vm_id) WHERE NOT identity_gone;
COMMENT ON COLUMN guest.vm_id IS 'a VM with an identity disk';
COMMENT ON COLUMN guest.token_hash IS 'SHA-256 of the token on that disk';
COMMENT ON COLUMN guest.identity_uid IS 'of its object in the cluster; NULL: the cluster has not answered yet';
COMMENT ON COLUMN guest.identity_gone IS 'the identity was removed from the cluster';
COMMENT ON COLUMN guest.boot_id IS 'of the guest that said hello last';
COMMENT ON COLUMN guest.former_boots IS 'those before it, the last first';
COMMENT ON COLUMN guest.claim_id IS 'the claim that the guest was last told of';
COMMENT ON COLUMN guest.settled_id IS 'the claim whose hand-over the guest has acknowledged';
COMMENT ON COLUMN guest.release_seconds IS 'how long its VM is kept after such a claim';
COMMENT ON COLUMN guest.conflict IS 'why nothing is handed over any more; NULL: it is';
COMMENT ON COLUMN guest.refused_at IS 'when a refusal was last written down';
CREATE TABLE handover (
    claim_id UUID NOT NULL,
    state TEXT DEFAULT 'pending' NOT NULL,
    sealed BYTEA,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    taken_at TIMESTAMP WITH TIME ZONE,
    done_at TIMESTAMP WITH TIME ZONE,
    exit_code INTEGER,
    output TEXT,
    reason TEXT,
    CONSTRAINT handover_pkey PRIMARY KEY (claim_id),
    CONSTRAINT handover_state_check CHECK (state IN ('pending', 'taken', 'done', 'failed')),
    CONSTRAINT handover_erased_check CHECK (state IN ('pending', 'taken') OR sealed IS NULL)
);
CREATE INDEX handover_pending_idx ON handover (claim_id) WHERE state = 'pending';
COMMENT ON COLUMN handover.sealed IS 'the data, encrypted; NULL: there was none, or it is erased';
COMMENT ON COLUMN handover.taken_at IS 'when the guest first got it';
COMMENT ON COLUMN handover.exit_code IS 'of the guest''s hooks';
COMMENT ON COLUMN handover.output IS 'what they printed, cut';
COMMENT ON COLUMN handover.reason IS 'why it waits, or why it failed';
CREATE FUNCTION end_handover() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE handover SET state = 'failed', sealed = NULL, done_at = now(), reason = 'the claim ended before the hooks had run'
    WHERE claim_id = NEW.id AND state IN ('pending', 'taken');
    IF EXISTS (SELECT FROM guest WHERE vm_id = NEW.vm_id AND claim_id = NEW.id) THEN
        PERFORM pg_notify('emberpool', 'guest:' || NEW.vm_id);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER claim_handover AFTER UPDATE OF state ON claim FOR EACH ROW
    WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL) EXECUTE FUNCTION end_handover();
"""

_DOWN = """
DROP TRIGGER claim_handover ON claim;
DROP FUNCTION end_handover;
DROP TABLE handover;
DROP TABLE guest;
"""


def upgrade() -> None:
    _run(_UP)


def downgrade() -> None:
    """What was not handed over yet is lost, and guests that wait are refused."""
    _run(_DOWN)


def _run(statements: str) -> None:
    body = statements.split("$$")
    for number, part in enumerate(body):
        if number % 2:
            body[number] = part.replace(";\n", ";\r")  # the statements of a function are one with it
    for statement in "$$".join(body).split(";\n"):
        if statement.strip():
            op.execute(statement.replace("\r", "\n"))

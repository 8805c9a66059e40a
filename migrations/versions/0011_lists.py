"""Lists, planning and history at size: labels of ended claims by name, requests to plan, and counted uses of snapshots."""

from alembic import op

revision = "0011"
down_revision = "0010"

_UP = """
ALTER TABLE vm ADD COLUMN lost BOOLEAN DEFAULT false NOT NULL;
COMMENT ON COLUMN vm.lost IS 'it ended as lost: `state` itself is in no index';
UPDATE vm SET lost = true WHERE state = 'lost';
ALTER TABLE snapshot ADD COLUMN used_at TIMESTAMP WITH TIME ZONE;
ALTER TABLE snapshot ADD COLUMN uses BIGINT DEFAULT 0 NOT NULL;
COMMENT ON COLUMN snapshot.used_at IS 'the last start from it';
COMMENT ON COLUMN snapshot.uses IS 'VMs that were started from it';
UPDATE snapshot SET (uses, used_at) = (
    SELECT count(*), max(asked_at) FROM vm WHERE vm.source = snapshot.name AND vm.path = 'snapshot') WHERE deleted_at IS NULL;
CREATE TABLE plan_request (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    pool_id UUID NOT NULL,
    CONSTRAINT plan_request_pkey PRIMARY KEY (id)
)
 WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
COMMENT ON COLUMN plan_request.pool_id IS 'it is to be planned: something of it has changed';
CREATE INDEX plan_request_pool_id_idx ON plan_request (pool_id);
CREATE INDEX pool_plan_due_idx ON pool_plan (due_at);
CREATE INDEX pool_history_idx ON pool (name) WHERE kind = 'pool';
CREATE INDEX snapshot_take_open_idx ON snapshot_take (snapshot_id) WHERE ended_at IS NULL;
CREATE TABLE event_reader (
    name TEXT NOT NULL,
    xid xid8 NOT NULL,
    id BIGINT NOT NULL,
    CONSTRAINT event_reader_pkey PRIMARY KEY (name)
);
COMMENT ON COLUMN event_reader.xid IS 'it has read all events up to this one';
CREATE TABLE bound_event (
    pool_id UUID NOT NULL,
    xid xid8 NOT NULL,
    id BIGINT NOT NULL,
    CONSTRAINT bound_event_pkey PRIMARY KEY (pool_id, xid, id)
);
COMMENT ON COLUMN bound_event.pool_id IS 'of an event claim.bound that `event_reader` has read';
CREATE TABLE claim_label (
    claim_id UUID NOT NULL,
    label TEXT NOT NULL,
    pool_id UUID NOT NULL,
    shape TEXT,
    state TEXT NOT NULL,
    CONSTRAINT claim_label_pkey PRIMARY KEY (claim_id, label)
);
COMMENT ON COLUMN claim_label.claim_id IS 'a claim that has ended';
COMMENT ON COLUMN claim_label.label IS 'name=value';
CREATE INDEX claim_label_idx ON claim_label (label, state, claim_id);
CREATE INDEX claim_label_pool_idx ON claim_label (label, pool_id, state, claim_id);
CREATE INDEX claim_label_shape_idx ON claim_label (label, shape, state, claim_id) WHERE shape IS NOT NULL;
CREATE INDEX claim_label_pool_shape_idx ON claim_label (label, pool_id, shape, state, claim_id) WHERE shape IS NOT NULL;
CREATE FUNCTION keep_claim_labels() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO claim_label (claim_id, label, pool_id, shape, state)
    SELECT NEW.id, l.key || '=' || l.value, NEW.pool_id, NEW.shape, NEW.state FROM jsonb_each_text(NEW.labels) l
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER claim_labels AFTER UPDATE OF state ON claim FOR EACH ROW
    WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL AND NEW.labels <> '{}') EXECUTE FUNCTION keep_claim_labels();
"""

_DOWN = """
DROP TRIGGER claim_labels ON claim;
DROP FUNCTION keep_claim_labels;
DROP TABLE claim_label;
DROP TABLE bound_event;
DROP TABLE event_reader;
DROP INDEX snapshot_take_open_idx;
DROP INDEX pool_history_idx;
DROP INDEX pool_plan_due_idx;
DROP TABLE plan_request;
ALTER TABLE snapshot DROP COLUMN uses;
ALTER TABLE snapshot DROP COLUMN used_at;
ALTER TABLE vm DROP COLUMN lost;
"""


def upgrade() -> None:
    _run(_UP)


def downgrade() -> None:
    _run(_DOWN)


def _run(statements: str) -> None:
    body = statements.split("$$")
    for number, part in enumerate(body):
        if number % 2:
            body[number] = part.replace(";\n", ";\r")  # the statements of a function are one with it
    for statement in "$$".join(body).split(";\n"):
        if statement.strip():
            op.execute(statement.replace("\r", "\n"))

"""Other ways to a VM than from a pool: snapshots, preloads, and pools of no size for claims that name none."""

from alembic import op

revision = "0002"
down_revision = "0001"

_UP = """
ALTER TABLE pool ADD COLUMN kind TEXT DEFAULT 'pool' NOT NULL;
COMMENT ON COLUMN pool.kind IS 'pool; shape: of no size and not shown, its VMs are made for claims of their own';
ALTER TABLE pool ADD COLUMN shape TEXT;
COMMENT ON COLUMN pool.shape IS 'fingerprint of what its VMs boot';
ALTER TABLE pool ADD COLUMN path TEXT DEFAULT 'cold' NOT NULL;
COMMENT ON COLUMN pool.path IS 'how its VMs start';
ALTER TABLE pool ADD COLUMN source TEXT;
COMMENT ON COLUMN pool.source IS 'the snapshot or preload that they start from';
ALTER TABLE vm ADD COLUMN shape TEXT;
COMMENT ON COLUMN vm.shape IS 'its pool''s when the cluster was first asked for it';
ALTER TABLE vm ADD COLUMN path TEXT;
COMMENT ON COLUMN vm.path IS 'likewise: how it started';
ALTER TABLE vm ADD COLUMN source TEXT;
COMMENT ON COLUMN vm.source IS 'likewise: the snapshot or preload that it started from';
ALTER TABLE vm ADD COLUMN whole BOOLEAN DEFAULT true NOT NULL;
COMMENT ON COLUMN vm.whole IS 'false: its disks are made after it, and may be missing while it is creating';
ALTER TABLE vm ADD COLUMN stopped BOOLEAN DEFAULT false NOT NULL;
COMMENT ON COLUMN vm.stopped IS 'we stopped it, for a snapshot: it is well without an instance';
ALTER TABLE claim ADD COLUMN shape TEXT;
COMMENT ON COLUMN claim.shape IS 'of a claim that named no pool: what it asked for';
ALTER TABLE claim ADD COLUMN choice JSONB;
COMMENT ON COLUMN claim.choice IS 'likewise: the path that was chosen, and why not each other';
ALTER TABLE claim ADD COLUMN allowed TEXT[];
COMMENT ON COLUMN claim.allowed IS 'likewise: the paths that it may be served by';
ALTER TABLE pool ADD CONSTRAINT pool_kind_check CHECK (kind IN ('pool', 'shape'));
ALTER TABLE pool ADD CONSTRAINT pool_path_check CHECK (path IN ('pool', 'snapshot', 'preload', 'cold'));
CREATE INDEX pool_shape_idx ON pool (shape) WHERE deleted_at IS NULL;
CREATE INDEX pool_source_idx ON pool (source) WHERE deleted_at IS NULL AND source IS NOT NULL;
CREATE INDEX vm_paths_idx ON vm (path, shape, ready_at) WHERE boot_seconds IS NOT NULL;
CREATE INDEX vm_path_idx ON vm (path, ready_at) WHERE boot_seconds IS NOT NULL;
CREATE INDEX vm_source_idx ON vm (source, ready_at) WHERE source IS NOT NULL;
CREATE TABLE preload (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    spec JSONB NOT NULL,
    generation BIGINT DEFAULT 1 NOT NULL,
    state TEXT DEFAULT 'planned' NOT NULL,
    state_since TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    image_kind TEXT NOT NULL,
    image TEXT NOT NULL,
    status JSONB DEFAULT '{}' NOT NULL,
    reason TEXT,
    used_at TIMESTAMP WITH TIME ZONE,
    uses BIGINT DEFAULT 0 NOT NULL,
    automatic BOOLEAN DEFAULT false NOT NULL,
    ready_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    deleting_at TIMESTAMP WITH TIME ZONE,
    deleted_at TIMESTAMP WITH TIME ZONE,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    lease_token UUID,
    lease_expires_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT preload_pkey PRIMARY KEY (id)
);
COMMENT ON COLUMN preload.spec IS 'PreloadSpec as written';
COMMENT ON COLUMN preload.image IS 'the reference, as in ImageRef';
COMMENT ON COLUMN preload.status IS 'what the cluster showed last';
COMMENT ON COLUMN preload.reason IS 'why it failed, or what it waits for';
COMMENT ON COLUMN preload.used_at IS 'the last start from it';
COMMENT ON COLUMN preload.uses IS 'VMs that were started from it';
COMMENT ON COLUMN preload.automatic IS 'made by a claim that is to be remembered: collected when unused';
COMMENT ON COLUMN preload.due_at IS 'a worker looks at it from then on';
CREATE INDEX preload_due_idx ON preload (due_at) WHERE deleted_at IS NULL;
CREATE INDEX preload_image_idx ON preload (image) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX preload_name_key ON preload (name) WHERE deleted_at IS NULL;
CREATE TABLE snapshot (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    spec JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    deleting_at TIMESTAMP WITH TIME ZONE,
    deleted_at TIMESTAMP WITH TIME ZONE,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    lease_token UUID,
    lease_expires_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT snapshot_pkey PRIMARY KEY (id)
);
COMMENT ON COLUMN snapshot.spec IS 'SnapshotSpec as written';
COMMENT ON COLUMN snapshot.due_at IS 'a worker looks at it from then on';
CREATE INDEX snapshot_due_idx ON snapshot (due_at) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX snapshot_name_key ON snapshot (name) WHERE deleted_at IS NULL;
CREATE TABLE snapshot_take (
    id UUID NOT NULL,
    snapshot_id UUID NOT NULL,
    number INTEGER NOT NULL,
    state TEXT DEFAULT 'planned' NOT NULL,
    state_since TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    shape TEXT,
    revision TEXT,
    based_at TIMESTAMP WITH TIME ZONE,
    vm_name TEXT,
    vm_uid TEXT,
    claim_id UUID,
    object_uid TEXT,
    disks JSONB DEFAULT '[]' NOT NULL,
    excluded JSONB DEFAULT '[]' NOT NULL,
    bytes BIGINT,
    reason TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ready_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT snapshot_take_pkey PRIMARY KEY (id),
    CONSTRAINT snapshot_take_state_check CHECK (state IN ('planned', 'booting', 'stopping', 'taking', 'ready', 'retiring', 'retired', 'failing', 'failed')),
    CONSTRAINT snapshot_take_snapshot_id_fkey FOREIGN KEY(snapshot_id) REFERENCES snapshot (id) ON DELETE CASCADE
);
COMMENT ON COLUMN snapshot_take.number IS 'rises with each refresh';
COMMENT ON COLUMN snapshot_take.shape IS 'of the VM that it was taken from';
COMMENT ON COLUMN snapshot_take.revision IS 'of the pool''s template that it was taken for';
COMMENT ON COLUMN snapshot_take.based_at IS 'when its VM was asked for: what became ready later is not in it';
COMMENT ON COLUMN snapshot_take.vm_name IS 'the VM that it is taken from';
COMMENT ON COLUMN snapshot_take.claim_id IS 'our own claim on that VM, where it was made for this';
COMMENT ON COLUMN snapshot_take.object_uid IS 'of the VirtualMachineSnapshot';
COMMENT ON COLUMN snapshot_take.disks IS 'SnapshotDisk of each included volume';
COMMENT ON COLUMN snapshot_take.excluded IS 'name and reason of each other';
COMMENT ON COLUMN snapshot_take.reason IS 'why it failed, or what it waits for';
CREATE UNIQUE INDEX snapshot_take_number_key ON snapshot_take (snapshot_id, number);
CREATE INDEX snapshot_take_shape_idx ON snapshot_take (shape) WHERE state = 'ready';
"""

_DOWN = """
DROP TABLE snapshot_take;
DROP TABLE snapshot;
DROP TABLE preload;
DROP INDEX vm_source_idx;
DROP INDEX vm_path_idx;
DROP INDEX vm_paths_idx;
DROP INDEX pool_source_idx;
DROP INDEX pool_shape_idx;
ALTER TABLE pool DROP CONSTRAINT pool_path_check;
ALTER TABLE pool DROP CONSTRAINT pool_kind_check;
ALTER TABLE pool DROP COLUMN kind;
ALTER TABLE pool DROP COLUMN shape;
ALTER TABLE pool DROP COLUMN path;
ALTER TABLE pool DROP COLUMN source;
ALTER TABLE vm DROP COLUMN shape;
ALTER TABLE vm DROP COLUMN path;
ALTER TABLE vm DROP COLUMN source;
ALTER TABLE vm DROP COLUMN whole;
ALTER TABLE vm DROP COLUMN stopped;
ALTER TABLE claim DROP COLUMN shape;
ALTER TABLE claim DROP COLUMN choice;
ALTER TABLE claim DROP COLUMN allowed;
"""


def upgrade() -> None:
    _run(_UP)


def downgrade() -> None:
    _run(_DOWN)


def _run(statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            op.execute(statement)

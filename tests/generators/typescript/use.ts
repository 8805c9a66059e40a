// Claims, reads and releases a VM with the types that openapi-typescript made of the document. Run by tests/api/test_generators.py.
import assert from "node:assert/strict";

import createClient from "openapi-fetch";

import type { components, paths } from "./schema.js";

const [address, pool] = process.argv.slice(2) as [string, string];
const client = createClient<paths>({ baseUrl: address });

const body: components["schemas"]["PoolClaim"] = { pool };
const made = await client.POST("/v1/claim", {
  body,
  params: { header: { "idempotency-key": "typescript-1" } },
});
assert.equal(made.response.status, 201);
const claimed: components["schemas"]["ClaimView"] = made.data!;
assert.ok(claimed.vm);

const path = { claim_id: claimed.id };
const read = await client.GET("/v1/claims/{claim_id}", { params: { path } });
assert.equal(read.data!.state, "bound");
assert.deepEqual(read.data!.vm, claimed.vm);

const page: components["schemas"]["ClaimPage"] = (await client.GET("/v1/claims", { params: { query: { pool } } })).data!;
assert.ok(page.items.some((each) => each.id === claimed.id));

const applied = await client.POST("/v1/manifests", {
  body: {
    apiVersion: "pool.kubevirt.io/v1",
    kind: "VirtualMachinePool",
    metadata: { name: "other" },
    spec: { size: 1, template: { image: "registry.local/disk:1", memory: "64Mi" } },
  },
  params: { query: { dry_run: true } },
});
assert.equal(applied.data!.documents[0]!.name, "other");

const released = await client.DELETE("/v1/claims/{claim_id}", { params: { path } });
assert.equal(released.data!.state, "released");

const refused = await client.GET("/v1/pools/{name}", { params: { path: { name: "nowhere" } } });
assert.equal(refused.error!.code, "pool-not-found");
console.log(claimed.id);

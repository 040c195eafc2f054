// Makes the database users of the server and of the workers, with the rights they need and no more.
// Run by mongosh as an administrator: docker-compose.yml does it when the database is made; elsewhere
//   SUPERDUPER_SECRETS=DIR mongosh "mongodb://root@..." scripts/mongo_users.js
// DIR holds the files server_password and worker_password.
const fs = require("fs");
const folder = process.env.SUPERDUPER_SECRETS || "/run/secrets";
const name = process.env.SUPERDUPER_DATABASE || "main";
const admin = db.getSiblingDB("admin");

const everywhere = (actions) => [{ resource: { db: name, collection: "" }, actions }];
const in_ours = (actions, collections) =>
  collections.map((each) => ({
    resource: { db: name, collection: `superduper.${each}` },
    actions,
  }));
// What a worker keeps account in. It may not add tokens, and adds to the audit log only.
const KEPT = [
  "artifacts", "artifacts.files", "artifacts.chunks", "checkpoints", "checkpoints.files",
  "checkpoints.chunks", "components", "corrections", "failures", "imputations",
  "forms", "jobs", "layers", "predictions", "ranges", "runs", "tallies", "traffic", "watchers", "workers",
];

const ROLES = {
  // Over HTTP people insert, change and delete documents; nobody drops a collection.
  superduperServer: everywhere([
    "find", "insert", "update", "remove", "createCollection", "createIndex",
    "listCollections", "listIndexes", "collStats",
  ]),
  // A worker fills fields of documents that are there: it neither makes nor deletes documents.
  superduperWorker: [
    ...everywhere(["find", "update", "changeStream", "listCollections", "listIndexes", "collStats"]),
    ...in_ours(["insert", "remove", "createCollection", "createIndex"], KEPT),
    ...in_ours(["insert", "createCollection"], ["audit"]),
  ],
};
const USERS = { server: "superduperServer", worker: "superduperWorker" };

for (const [role, privileges] of Object.entries(ROLES)) {
  db.getSiblingDB(name).createRole({ role, privileges, roles: [] });
}
for (const [user, role] of Object.entries(USERS)) {
  const pwd = fs.readFileSync(`${folder}/${user}_password`, "utf8").trim();
  admin.createUser({ user, pwd, roles: [{ role, db: name }] });
}

// Makes the database users of the server and of the workers, with the rights they need and no more.
// Run by mongosh as an administrator: docker-compose.yml does it when the database is made; elsewhere
//   SUPERDUPER_SECRETS=DIR mongosh "mongodb://root@..." scripts/mongo_users.js
// DIR holds the files server_password and worker_password.
const fs = require("fs");
const folder = process.env.SUPERDUPER_SECRETS || "/run/secrets";
const name = process.env.SUPERDUPER_DATABASE || "main";
const admin = db.getSiblingDB("admin");

// Names of the collections with documents, with commas. With them each right is for one collection;
// without, finding and updating are for all of the database, ours too: MongoDB can exclude none.
const named = (process.env.SUPERDUPER_COLLECTIONS || "").split(",").filter((each) => each);

const on = (collection, actions) => ({ resource: { db: name, collection }, actions });
const everywhere = (actions) => [on("", actions)];
const in_documents = (actions) =>
  named.length ? named.map((each) => on(each, actions)) : everywhere(actions);
const in_ours = (actions, collections) =>
  collections.map((each) => on(`superduper.${each}`, actions));

// What is in these a worker adds to, and changes, but never removes.
const ADDED = ["components", "forms", "jobs", "runs", "tallies", "watchers"];
// What is in these it also removes: when it is done with, or belongs to nothing any more.
const KEPT = [
  "artifacts", "artifacts.files", "artifacts.chunks", "checkpoints", "checkpoints.files",
  "checkpoints.chunks", "corrections", "failures", "layers", "predictions", "ranges", "workers",
];
// What only a server makes and removes; a worker changes the first, and need not see the second.
const SERVED = ["imputations", "traffic"];

const READ = ["find", "listIndexes", "collStats"];
const ADD = [...READ, "insert", "createCollection", "createIndex"];

const ROLES = {
  // Over HTTP people insert, change and delete documents; nobody drops a collection.
  superduperServer: [
    ...everywhere(["listCollections"]),
    ...in_documents([...ADD, "update", "remove"]),
    ...in_ours([...ADD, "update", "remove"], [...ADDED, ...KEPT, ...SERVED]),
    ...in_ours([...ADD, "update"], ["tokens"]),
    ...in_ours(ADD, ["audit"]),
  ],
  // A worker fills fields of documents that are there: it neither makes nor deletes documents.
  superduperWorker: [
    ...everywhere(["listCollections"]),
    ...in_documents([...READ, "update", "changeStream"]),
    ...in_ours([...READ, "update"], ["imputations"]),
    ...in_ours([...ADD, "update"], ADDED),
    ...in_ours([...ADD, "update", "remove"], KEPT),
    ...in_ours(ADD, ["audit"]),
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

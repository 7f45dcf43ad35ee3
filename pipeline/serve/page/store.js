"use strict";
// What this browser keeps: conversations in IndexedDB, and a few words in the storage of the tab.
// A conversation has a header, which the list is made of, and a body, which is read when it is opened.

const STORE = "pion";
const STORE_VERSION = 1;

/** Return a storage of the browser. It may be forbidden; then it lasts as long as the page. */
function storageOf(find) {
  const memory = new Map();
  return {
    get(key) {
      try {
        return find().getItem(key);
      } catch {
        return memory.get(key) ?? null;
      }
    },
    set(key, value) {
      try {
        find().setItem(key, value);
      } catch {
        memory.set(key, value);
      }
    },
  };
}

const tab = storageOf(() => sessionStorage);
const everyTab = storageOf(() => localStorage);

/** The conversations of this browser. What can't be written stays in memory, and `trouble` says why. */
const store = {
  db: null,
  trouble: "",
  unwritten: new Map(), // id: [header, body]

  /** Open the database, or say in `trouble` why that is impossible. */
  async open() {
    try {
      this.db = await opened();
      this.db.onversionchange = () => this.giveWay();
    } catch (error) {
      this.trouble = reason(error);
    }
  },

  /** Let a newer page in another tab change the database. */
  giveWay() {
    this.db.close();
    this.db = null;
    this.trouble = reason({ name: "VersionError" });
  },

  /** Return the headers of all conversations. */
  async headers() {
    const found = await this.read("headers", (headers) => headers.getAll(), []);
    const here = [...this.unwritten.values()].map(([header]) => header);
    return [...found.filter(({ id }) => !this.unwritten.has(id)), ...here];
  },

  /** Return the body of a conversation, or undefined. */
  async body(id) {
    return this.unwritten.get(id)?.[1] ?? (await this.read("bodies", (bodies) => bodies.get(id)))?.body;
  },

  /** Keep a conversation; without a body, the one that is kept stays. */
  async put(header, body) {
    try {
      await this.write(({ headers, bodies }) => {
        headers.put(header);
        if (body) bodies.put({ id: header.id, body });
      });
      this.unwritten.delete(header.id);
      this.trouble = "";
    } catch (error) {
      this.trouble = reason(error);
      this.unwritten.set(header.id, [header, body ?? (await this.body(header.id))]);
    }
  },

  async remove(ids) {
    for (const id of ids) this.unwritten.delete(id);
    try {
      await this.write(({ headers, bodies }) => {
        for (const id of ids) {
          headers.delete(id);
          bodies.delete(id);
        }
      });
    } catch (error) {
      this.trouble = reason(error);
    }
  },

  async read(name, ask, otherwise) {
    try {
      return await answerOf(ask(this.db.transaction(name).objectStore(name)));
    } catch {
      return otherwise;
    }
  },

  /** Write both kinds in one transaction. It is committed at once, so that it outlives a closed tab. */
  write(act) {
    if (!this.db) throw new Error(this.trouble);
    const transaction = this.db.transaction(["headers", "bodies"], "readwrite");
    act({ headers: transaction.objectStore("headers"), bodies: transaction.objectStore("bodies") });
    transaction.commit();
    return new Promise((done, failed) => {
      transaction.oncomplete = done;
      transaction.onabort = () => failed(transaction.error ?? new Error("the browser gave up"));
    });
  },
};

function opened() {
  const request = indexedDB.open(STORE, STORE_VERSION);
  request.onupgradeneeded = () => {
    for (const name of ["headers", "bodies"]) request.result.createObjectStore(name, { keyPath: "id" });
  };
  return answerOf(request);
}

function answerOf(request) {
  return new Promise((done, failed) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
}

/** Return in words why the browser keeps nothing. */
function reason(error) {
  const known = {
    QuotaExceededError: "its storage is full",
    SecurityError: "it forbids this page to store anything",
    InvalidStateError: "it forbids this page to store anything",
    VersionError: "a newer version of this page keeps them",
  };
  return known[error.name] ?? error.message;
}

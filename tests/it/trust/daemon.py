"""A daemon that lies. It stands between a client and the daemon of ours whose socket it has taken, and tampers with the
answers in the way that the file `mode` names: daemon.py DIRECTORY"""

import glob
import json
import os
import socket
import sys
import threading
import time

(base,) = [name.removesuffix(".sock") for name in glob.glob(sys.argv[1] + "/*.sock")]
os.rename(base + ".sock", base + ".real")
listener = socket.socket(socket.AF_UNIX)
listener.bind(base + ".new")
listener.listen(64)
os.rename(base + ".new", base + ".sock")


def ask(request):
    with socket.socket(socket.AF_UNIX) as real:
        real.connect(base + ".real")
        real.sendall(request)
        answer, files = b"", []
        while not answer.endswith(b"\n"):
            data, more, _, _ = socket.recv_fds(real, 1 << 16, 16)
            if not data:
                break
            answer += data
            files += more
        return json.loads(answer), files


def fifo():
    if not os.path.exists("fifo"):
        os.mkfifo("fifo")
    return os.open("fifo", os.O_RDWR)


def serve(client):
    """Who has been given the contents asks on."""
    requests = client.makefile("rb")
    while request := requests.readline():
        if not serve_one(client, request):
            break


def serve_one(client, request):
    mode = open("mode").read().strip()
    if mode == "dribble":
        while True:
            client.sendall(b" ")
            time.sleep(0.2)
    elif mode == "endless":
        while True:
            client.sendall(b" " * 65536)
    elif mode == "silent":
        time.sleep(1000)
    elif mode == "deep":
        client.sendall(b"[" * 100000 + b"\n")
        return False
    elif mode == "closes":
        return False
    elif mode in ("receiving", "done"):
        client.sendall(json.dumps(mode).encode() + b"\n")
        return False
    elif mode == "failed":
        client.sendall(b'{"failed":"I do not want to"}\n')
        return False
    answer, files = ask(request)
    contents, progress = answer.get("contents"), answer.get("progress")
    if mode == "escapes" and "status" in answer:
        answer["status"]["source"] = "\x1b[2J\x1b]0;owned\x07\u202e\n  state  forged"
    elif mode == "many files" and contents:
        for _ in range(50):
            socket.send_fds(client, [b" "], [files[0]] * 2)
    elif mode == "fifo as journal" and contents:
        files[0] = fifo()
    elif mode == "fifo as archive" and contents:
        contents["spool"], files = False, [fifo()]
    elif mode == "file as blobs" and contents:
        files[1] = files[0]
    elif mode == "blobs of root" and contents:
        files[1] = os.open("../secret", os.O_RDONLY)
    elif mode == "no files" and contents:
        files = []
    elif mode == "longer" and progress:
        progress["journal"] = 2**64 - 1
        progress["spooled"] = 2**64 - 1
    elif mode == "back" and progress:
        progress["over"] = False
        if b'"known":null' not in request and b'"known":0' not in request:
            progress["journal"] //= 2
    line = json.dumps(answer, ensure_ascii=False).encode() + b"\n"
    socket.send_fds(client, [line], files)
    return True


def serve_and_close(client):
    with client:
        try:
            serve(client)
        except OSError:
            pass


print("ready", flush=True)
while True:
    client, _ = listener.accept()
    threading.Thread(target=serve_and_close, args=(client,), daemon=True).start()

# What is in an archive, and where, as Python's tarfile sees it: a line of JSON for each member.
import json, sys, tarfile

KINDS = {b"0": "file", b"\0": "file", b"S": "file", b"1": "hardlink", b"2": "symlink", b"3": "char", b"4": "block",
         b"5": "dir", b"6": "fifo"}
XATTR = "SCHILY.xattr."
with tarfile.open(sys.argv[1], "r:") as archive:
    for m in archive:
        kind = KINDS[m.type]
        segments = m.sparse if m.sparse is not None else [(0, m.size)] if kind == "file" else []
        print(json.dumps({
            "path": m.name, "kind": kind, "mode": m.mode & 0o7777, "uid": m.uid, "gid": m.gid,
            "mtime": m.pax_headers.get("mtime", str(m.mtime)), "target": m.linkname,
            "device": [m.devmajor, m.devminor], "data": m.offset_data, "size": m.size,
            "segments": [s for s in segments if s[1]], "sparse": m.sparse is not None,
            "contents": list(archive.extractfile(m).read()) if kind == "file" else [],
            "xattrs": {k[len(XATTR):]: v for k, v in m.pax_headers.items() if k.startswith(XATTR)},
        }))

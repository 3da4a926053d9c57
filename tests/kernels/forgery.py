"""What code in a kernel can say in the kernel's name: cells that define `forge` and `raw`, by backend."""

from __future__ import annotations

PRELUDE = {
    "fork": """
import os, threading, time
CHANNEL = get_ipython().kernel.iopub_socket
ME = CHANNEL.current
def forge(kind, content, parent=None):
    'Sends a well-formed message of any kind under any parent.'
    import json, struct
    body = json.dumps({'type': kind, 'parent': ME if parent is None else parent, 'content': content}).encode()
    with CHANNEL.lock:
        CHANNEL.sock.sendall(struct.pack('!I', len(body)) + body)
def raw(data):
    'Writes bytes that are no message.'
    with CHANNEL.lock:
        CHANNEL.sock.sendall(data)
""",
    "local": """
import json, os, re, threading, time
KERNEL = get_ipython().kernel
KERNEL.session.pack = lambda it: json.dumps(it, default=str).encode()  # jupyter's own refuses some of it
ME = KERNEL.get_parent()['header']['msg_id']
def forge(kind, content, parent=None):
    'Sends a signed message of any kind under any parent, on iopub and on shell.'
    header = {'msg_id': ME if parent is None else parent, 'session': KERNEL.session.session}
    message = KERNEL.session.msg(kind, parent=None)
    message['content'], message['parent_header'] = content, header
    KERNEL.session.send(KERNEL.iopub_socket, message)
    if kind.endswith('_reply'):
        KERNEL.session.send(KERNEL.shell_stream, message, ident=[b'nbagent'])
def raw(data):
    'Writes bytes that are no message to what the host is connected to.'
    inodes = set()
    for line in open('/proc/net/unix'):
        fields = line.split()
        if len(fields) == 8 and re.search(r's-[12]$', fields[7]) and fields[5] == '03':
            inodes.add(fields[6])
    for fd in os.listdir('/proc/self/fd'):
        try:
            link = os.readlink('/proc/self/fd/' + fd)
        except OSError:
            continue
        if link[:8] == 'socket:[' and link[8:-1] in inodes:
            os.set_blocking(int(fd), True)
            os.write(int(fd), data)
""",
}
PRELUDE["docker"] = PRELUDE["fork"]
STRANGE = """
DEEP = 'x'
for _ in range(300): DEEP = [DEEP]
ODD = [None, True, -1, 1e308, 10 ** 3000, '', chr(0xD800), [], {}, {'a': {}}, [[]], DEEP]
FIELDS = {
    'stream': ['name', 'text'],
    'display_data': ['data', 'metadata', 'transient'],
    'update_display_data': ['data', 'metadata', 'transient'],
    'execute_result': ['data', 'metadata', 'execution_count'],
    'error': ['ename', 'evalue', 'traceback'],
    'clear_output': ['wait'],
    'input_reply': ['value'],
    'comm_open': ['comm_id', 'target_name', 'data'],
    'comm_msg': ['comm_id', 'data'],
    'dropped': ['bytes', 'reply'],
    'oversize': ['bytes'],
    'ready': ['pid', 'why'],
    'failed': ['why'],
    'born': ['pid'],
    'branch_reply': ['why'],
    'kernel_info_reply': ['status'],
    'nonsense': ['x'],
}
GOOD = {'name': 'stdout', 'text': 't', 'data': {'text/plain': 'd'}, 'metadata': {}, 'transient': {}, 'ename': 'E',
        'evalue': 'v', 'traceback': ['t'], 'execution_count': 1, 'wait': False}
def strange(parent=None):
    for kind, fields in FIELDS.items():
        for field in fields:
            for odd in ODD:
                forge(kind, {**{f: GOOD[f] for f in fields if f in GOOD}, field: odd}, parent)
        for odd in ODD:
            forge(kind, {'data': {'text/plain': odd}, 'transient': {'display_id': odd}}, parent)
            forge(kind, odd if isinstance(odd, dict) else {'x': odd}, parent)
"""
"""Defines `strange`: every field of every kind of message with every wrong type."""

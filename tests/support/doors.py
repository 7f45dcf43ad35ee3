"""The sockets at which processes listen, and which of them other machines may reach."""

import ipaddress
import socket
from typing import NamedTuple

import psutil


class Socket(NamedTuple):
    """A TCP or UDP socket that waits for others."""

    program: str
    address: str
    port: int


def listening(pids):
    """Return the sockets at which these processes listen."""
    found = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            name, connections = process.name(), process.net_connections("inet")
        except psutil.Error:
            continue  # the process has just ended
        for each in connections:
            datagrams = each.type == socket.SOCK_DGRAM and not each.raddr
            if each.status == psutil.CONN_LISTEN or datagrams:
                found.add(Socket(name, str(each.laddr.ip), int(each.laddr.port)))
    return found


def own_address():
    """Return this machine's address on its network, or else on loopback. Ray does not accept a
    second node at 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, only chooses the interface
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def open_to_others(sockets):
    """Return the sockets that are not bound to loopback."""
    return {each for each in sockets if not _is_loopback(each.address)}


def _is_loopback(address):
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback

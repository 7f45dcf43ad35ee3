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


def open_to_others(sockets):
    """Return the sockets that are not bound to loopback."""
    return {each for each in sockets if not _is_loopback(each.address)}


def _is_loopback(address):
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback

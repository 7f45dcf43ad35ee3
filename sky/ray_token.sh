# Read by boot.sh and ray_nodes.sh: with several nodes, give Ray the token that this launch has made.
# Ray's ports on the network between the nodes answer only to who knows the token.
[[ "${PION_RAY_TOKEN:-}" =~ ^[A-Za-z0-9_-]{32,}$ ]] || {
    echo "boot: several nodes need a random token of 32 or more letters and digits, by which they" \
        "know each other. Nothing was started. \`pion launch\` makes the token; with a bare" \
        '`sky jobs launch`, add: --secret PION_RAY_TOKEN=$(openssl rand -hex 32)' >&2
    exit 2
}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$PION_RAY_TOKEN
unset RAY_AUTH_TOKEN_PATH

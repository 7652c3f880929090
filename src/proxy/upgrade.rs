//! WebSocket and any other Upgrade.

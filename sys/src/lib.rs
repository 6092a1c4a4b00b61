//! Socket options and packet sockets: the only `unsafe` in the workspace.

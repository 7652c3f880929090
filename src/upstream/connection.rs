//! One connection that speaks HTTP/1.1 or HTTP/2.

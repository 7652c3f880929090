//! What may be dialled, judged on the address itself.

//! The keys there are: what each block may hold.

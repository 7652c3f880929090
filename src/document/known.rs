//! What was read before: a thousand upstreams that write no `retry` share one block of it.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::document::tree::Node;

/// Blocks that were read without a problem, and what was read of them.
#[derive(Default)]
pub struct Known(RefCell<HashMap<(*const Node, TypeId), Read>>);

/// A block, kept so that its address stays its own, and what was read of it: an `Option` of its type.
type Read = (Arc<Node>, Box<dyn Any>);

impl Known {
    pub(super) fn get<T: Clone + 'static>(&self, node: &Arc<Node>) -> Option<Option<T>> {
        let known = self.0.borrow();
        known.get(&(Arc::as_ptr(node), TypeId::of::<T>()))?.1.downcast_ref::<Option<T>>().cloned()
    }

    pub(super) fn keep<T: Clone + 'static>(&self, node: &Arc<Node>, value: &Option<T>) {
        let read: Read = (node.clone(), Box::new(value.clone()));
        self.0.borrow_mut().insert((Arc::as_ptr(node), TypeId::of::<T>()), read);
    }
}

//! What goes on beside the driver of a run, and what panics: either becomes a record, and ends neither run nor evidence.

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt as _;
use tokio::{task::JoinHandle, time::timeout};

use super::field::Field;

/// A client in a task of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Task<T> {
    who: String,
    handle: JoinHandle<T>,
    is_over: bool,
}

impl<T: Send + 'static> Task<T> {
    /// Begins it.
    pub fn spawn(who: impl Into<String>, client: impl Future<Output = T> + Send + 'static) -> Self {
        Self { who: who.into(), handle: tokio::spawn(client), is_over: false }
    }

    /// What it gives, if it ends in time. A panic is a violation.
    pub async fn end(&mut self, field: &Field, patience: Duration) -> Option<T> {
        if self.is_over {
            return None;
        }
        let end = timeout(patience, &mut self.handle).await.ok()?;
        self.is_over = true;
        end.inspect_err(|error| field.violation(format!("{} panicked: {error}", self.who))).ok()
    }

    /// The same, where not to end in time is a violation, too.
    pub async fn joined(mut self, field: &Field, patience: Duration) -> Option<T> {
        let end = self.end(field, patience).await;
        if !self.is_over {
            field.violation(format!("{} does not end within {patience:?}", self.who));
        }
        end
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// What comes of it, or the words of the panic that ended it.
///
/// # Errors
/// If it panics.
pub async fn caught<T>(it: impl Future<Output = T>) -> Result<T, String> {
    // What it leaves half done is only dropped, and shared state is behind locks that a panic poisons.
    AssertUnwindSafe(it).catch_unwind().await.map_err(|panic| words(&*panic))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{future::pending, path::PathBuf};

    use super::*;
    use crate::history::{Capacity, Note};

    const SHORT: Duration = Duration::from_millis(10);

    fn field() -> Field {
        Field::new(1, PathBuf::new(), PathBuf::new(), Capacity::default())
    }

    fn violations(field: &Field) -> Vec<String> {
        let evidence = field.history().evidence().unwrap();
        let of = |note: &Note| if let Note::Violation(violation) = note { Some(violation.what.clone()) } else { None };
        evidence.notes().filter_map(|(_, note)| of(note)).collect()
    }

    #[tokio::test]
    async fn who_does_not_end_or_panics_is_recorded() {
        let field = field();
        assert_eq!(Task::spawn("one", async { 7 }).joined(&field, SHORT).await, Some(7));
        assert_eq!(violations(&field), [""; 0]);
        assert_eq!(Task::spawn("one", pending::<u32>()).joined(&field, SHORT).await, None);
        assert_eq!(Task::spawn("two", async { panic!("no luck") }).joined(&field, SHORT).await, None::<u32>);
        let said = violations(&field);
        assert!(said[0].starts_with("one does not end") && said[1].contains("no luck") && said.len() == 2, "{said:?}");
    }

    #[tokio::test]
    async fn who_may_be_late_is_waited_for_again() {
        let field = field();
        let (done, wait) = tokio::sync::oneshot::channel::<()>();
        let mut task = Task::spawn("one", wait);
        assert!(task.end(&field, SHORT).await.is_none());
        drop(done);
        assert!(task.joined(&field, SHORT).await.is_some());
        assert_eq!(violations(&field), [""; 0]);
    }

    #[tokio::test]
    async fn a_panic_gives_its_words() {
        assert_eq!(caught(async { panic!("node {} is gone", 2) }).await, Err::<(), _>("node 2 is gone".to_owned()));
        assert_eq!(caught(async { 7 }).await, Ok(7));
    }
}

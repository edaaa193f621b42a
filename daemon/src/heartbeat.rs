//! The heartbeat of the task that accepts connections, for a watchdog.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// A call that is made again and again.
#[derive(Default)]
pub(crate) struct Heartbeat(Option<(Interval, Box<dyn FnMut() + Send>)>);

impl Heartbeat {
    /// Creates a heartbeat that calls `beat` every `period`. Needs a runtime.
    pub(crate) fn new(period: Duration, beat: impl FnMut() + Send + 'static) -> Self {
        let period = period.max(Duration::from_millis(1));
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(Some((ticks, Box::new(beat))))
    }

    /// Makes the calls until dropped. It can be run again.
    pub(crate) async fn run(&mut self) -> Infallible {
        let Some((ticks, beat)) = &mut self.0 else { return std::future::pending().await };
        loop {
            ticks.tick().await;
            beat();
        }
    }
}

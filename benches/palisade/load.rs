//! A load that this process makes itself: tasks that do one thing again and again, each waiting for its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, LocalBoxFuture};

use crate::harness::{Sample, Variant};
use crate::server::Db;

/// What a client does: who it is, and how often it did it before (over all rounds, counted from 1).
pub type Work = Arc<dyn Fn(usize, i64) -> BoxFuture<'static, ()> + Send + Sync>;

pub struct Load<'a> {
    name: &'static str,
    db: &'a Db<'a>,
    turns: Arc<Vec<AtomicI64>>,
    work: Work,
}

impl<'a> Load<'a> {
    pub fn new(
        db: &'a Db<'a>,
        name: &'static str,
        clients: usize,
        work: impl Fn(usize, i64) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Load<'a> {
        Load { name, db, turns: Arc::new((0..clients).map(|_| AtomicI64::new(0)).collect()), work: Arc::new(work) }
    }

    /// All of all rounds.
    pub fn done(&self) -> i64 {
        self.turns.iter().map(|turns| turns.load(Ordering::Relaxed)).sum()
    }

    async fn run(&self, span: Duration) -> Sample {
        let begin = Instant::now() + Duration::from_millis(500); // before it: connections, prepared statements
        let end = begin + span;
        let (mut sql, before) = (self.db.sql().await, self.done());
        let (wal, cpu) = (Db::wal(&mut sql).await, self.db.cpu());
        let tasks: Vec<_> = (0..self.turns.len())
            .map(|client| {
                let (work, turns) = (self.work.clone(), self.turns.clone());
                tokio::spawn(async move {
                    let mut took = Vec::new();
                    loop {
                        let began = Instant::now();
                        if began >= end {
                            return took;
                        }
                        work(client, turns[client].fetch_add(1, Ordering::Relaxed) + 1).await;
                        if began >= begin {
                            took.push(began.elapsed());
                        }
                    }
                })
            })
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await.expect("a client of the benchmark"));
        }
        let (wal, cpu) = (Db::wal(&mut sql).await - wal, self.db.cpu() - cpu);
        sql.close().await;
        let mut sample = Sample::new(took, begin.elapsed());
        let count = (self.done() - before) as f64;
        sample.wal_bytes = Some(wal as f64 / count);
        sample.cpu_us = Some(cpu.as_secs_f64() * 1e6 / count);
        sample
    }
}

impl Variant for Load<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn round(&mut self, span: Duration) -> LocalBoxFuture<'_, Sample> {
        Box::pin(self.run(span))
    }
}

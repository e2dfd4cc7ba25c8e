//! What can be counted: families of counters, gauges and histograms. Only the catalogue makes families; others ask them
//! for series.

use std::marker::PhantomData;

use crate::export;

/// What a metric is.
#[derive(Debug)]
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// What it means, in a sentence.
    pub help: &'static str,
    /// What kind it is.
    pub kind: Kind,
    /// What its number counts or measures.
    pub unit: &'static str,
    /// Its labels.
    pub labels: &'static [&'static Label],
    /// Of a histogram, the upper bounds of its buckets.
    pub buckets: &'static [f64],
}

/// Kinds of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It stands somewhere.
    Gauge,
    /// How often something was how large.
    Histogram,
}

/// A label of a metric.
#[derive(Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What values it may have.
    pub values: Values,
}

/// Values of a label.
#[derive(Debug)]
pub enum Values {
    /// These alone.
    Of(fn() -> Vec<&'static str>),
    /// Whatever there is of this.
    Open(&'static str),
}

impl Label {
    /// The values that are known in advance.
    #[must_use]
    pub fn known(&self) -> Vec<&'static str> {
        match self.values {
            Values::Of(values) => values(),
            Values::Open(_) => Vec::new(),
        }
    }
}

/// A metric of the catalogue, whatever its kind.
pub trait Listed: Sync {
    /// What it is.
    fn about(&self) -> &About;
    /// Makes every series whose labels' values are known in advance.
    fn begin(&'static self);
}

mod sealed {
    use super::About;

    /// How the series of a kind of metric are made.
    pub trait Made: Sized {
        fn series(about: &'static About, values: &[&str]) -> Self;
    }
}
use sealed::Made;

/// A series that a family hands out.
pub trait Metric: Made {
    /// What kind it is.
    const KIND: Kind;
}

/// A counter. Copies count together.
#[derive(Clone)]
pub struct Counter(metrics::Counter);

/// A counter of seconds.
#[derive(Clone)]
pub struct Seconds(metrics::Gauge);

/// A gauge.
#[derive(Clone)]
pub struct Gauge(metrics::Gauge);

/// A histogram.
#[derive(Clone)]
pub struct Histogram(metrics::Histogram);

macro_rules! metrics {
    ($($metric:ident is $kind:ident by $register:ident;)*) => {$(
        impl Made for $metric {
            fn series(about: &'static About, values: &[&str]) -> Self {
                Self(export::$register(about, values))
            }
        }

        impl Metric for $metric {
            const KIND: Kind = Kind::$kind;
        }
    )*};
}

metrics! {
    Counter is Counter by counter;
    Seconds is Counter by total;
    Gauge is Gauge by gauge;
    Histogram is Histogram by histogram;
}

impl Counter {
    /// Adds to it.
    pub fn add(&self, more: u64) {
        self.0.increment(more);
    }
}

impl Seconds {
    /// Brings it to a total, which must not be smaller than before.
    pub fn set(&self, total: f64) {
        self.0.set(total);
    }
}

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: f64) {
        self.0.set(value);
    }

    /// Sets it to a whole number; beyond 2⁵³ the nearest that can be shown.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn set_count(&self, value: u64) {
        self.0.set(value as f64);
    }

    /// Sets it to 1 or 0.
    pub fn set_flag(&self, value: bool) {
        self.0.set(f64::from(u8::from(value)));
    }
}

impl Histogram {
    /// Counts one observation.
    pub fn observe(&self, value: f64) {
        self.0.record(value);
    }
}

/// A counter that follows a total which its one writer keeps elsewhere.
pub struct Tally {
    counter: Counter,
    seen: u64,
}

impl Tally {
    /// Follows a total that begins at 0.
    #[must_use]
    pub fn new(counter: Counter) -> Self {
        Self { counter, seen: 0 }
    }

    /// The total stands here now.
    pub fn set(&mut self, total: u64) {
        // A counter that never fell has grown by what is missing.
        self.counter.add(total.saturating_sub(self.seen));
        self.seen = total;
    }
}

/// A metric with `N` labels.
pub struct Family<M: Metric, const N: usize> {
    about: About,
    metric: PhantomData<fn() -> M>,
}

/// The parts of a metric that the catalogue writes down.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) labels: &'static [&'static Label],
    pub(crate) buckets: &'static [f64],
}

impl<M: Metric, const N: usize> Family<M, N> {
    /// For the catalogue alone.
    pub(crate) const fn new(entry: Entry) -> Self {
        let Entry { name, help, unit, labels, buckets } = entry;
        assert!(labels.len() == N);
        let about = About { name, help, kind: M::KIND, unit, labels, buckets };
        Self { about, metric: PhantomData }
    }

    /// The series with these values of the labels, in their order; it is made if there is none. It takes a lock: who
    /// counts often keeps the series.
    ///
    /// # Panics
    /// If a label cannot have its value by the catalogue.
    pub fn with(&'static self, values: [&str; N]) -> M {
        for (label, value) in self.about.labels.iter().zip(values) {
            if let Values::Of(known) = label.values {
                assert!(known().contains(&value), "the catalogue has no {}={value:?}", label.name);
            }
        }
        M::series(&self.about, &values)
    }

    /// Shows a series no more whose subject is gone, until somebody asks for it again. Not for histograms.
    pub fn remove(&self, values: [&str; N]) {
        export::hide(&self.about, &values);
    }
}

impl<M: Metric> Family<M, 0> {
    /// The one series.
    pub fn one(&'static self) -> M {
        self.with([])
    }
}

impl<M: Metric, const N: usize> Listed for Family<M, N> {
    fn about(&self) -> &About {
        &self.about
    }

    fn begin(&'static self) {
        let mut known = vec![Vec::new()];
        for label in self.about.labels {
            let values = label.known();
            let longer = |begun: &Vec<&'static str>| {
                let begun = begun.clone();
                values.clone().into_iter().map(move |value| [&*begun, &[value]].concat())
            };
            known = known.iter().flat_map(longer).collect();
        }
        for values in known {
            M::series(&self.about, &values);
        }
    }
}

//! A sensor in thirty lines: `sensor boiler-1.json [READINGS]`.

use std::{env, error::Error, time::Duration};

use duet_device::client::{Client, Outcome};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let path = arguments.next().ok_or("which credential file? sensor boiler-1.json")?;
    let readings = arguments.next().map_or(Ok(u32::MAX), |count| count.parse())?;
    let mut device = Client::from_file(path)?;
    device.on_command(|payload| {
        println!("command: {}", String::from_utf8_lossy(payload));
        Outcome::done("ok")
    });
    for number in 0..readings {
        let celsius = 21.5 + f64::from(number % 10) / 10.0;
        device.send(1, format!("{celsius:.1}").as_bytes())?;
        println!("stored: {celsius:.1}");
        if number + 1 < readings {
            device.wait(Duration::from_secs(10))?;
        }
    }
    device.rest()?;
    Ok(device.close()?)
}
